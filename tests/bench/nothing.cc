// The job that is measured: linked statically, it ends at once.
int main() { return 0; }
