#include "daemon/command_line.h"

#include "daemon/because.h"

namespace jobworker {

namespace {

constexpr std::string_view kBlanks = " \t\n";

class Splitter {
 public:
  explicit Splitter(std::string_view rest) : rest_(rest) {}

  tl::expected<std::vector<std::string>, std::string> Split() {
    while (!rest_.empty()) {
      const char c = rest_.front();
      rest_.remove_prefix(1);
      if (kBlanks.find(c) != std::string_view::npos) {
        EndWord();
      } else if (c == '\'' || c == '"') {
        in_word_ = true;
        if (!Quoted(c)) return Because(std::string("the command has an unterminated ") + c + " quote");
      } else if (c == '\\') {
        if (rest_.empty()) return Because("the command ends in a backslash");
        Escaped();
      } else {
        Add(c);
      }
    }
    EndWord();
    return std::move(words_);
  }

 private:
  void Add(char c) {
    word_ += c;
    in_word_ = true;
  }
  void EndWord() {
    if (in_word_) words_.push_back(std::move(word_));
    word_.clear();
    in_word_ = false;
  }
  void Escaped() {
    if (rest_.front() != '\n') Add(rest_.front());
    rest_.remove_prefix(1);
  }
  bool Quoted(char quote) {
    while (!rest_.empty()) {
      const char c = rest_.front();
      rest_.remove_prefix(1);
      if (c == quote) return true;
      const bool special = quote == '"' && c == '\\' && !rest_.empty() &&
                           std::string_view("$`\"\\\n").find(rest_.front()) != std::string_view::npos;
      if (special) {
        Escaped();
      } else {
        Add(c);
      }
    }
    return false;
  }

  std::string_view rest_;
  std::vector<std::string> words_;
  std::string word_;
  bool in_word_ = false;
};

}  // namespace

tl::expected<std::vector<std::string>, std::string> SplitWords(std::string_view command) {
  return Splitter(command).Split();
}

}  // namespace jobworker
