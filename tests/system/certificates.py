"""Makes certificates for the tests: good ones, and every bad one."""

import datetime
import ipaddress
import os
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH
SERVER = ExtendedKeyUsageOID.SERVER_AUTH
DAY = datetime.timedelta(days=1)
ORGANISATION = [
    (NameOID.COUNTRY_NAME, 'US'),
    (NameOID.STATE_OR_PROVINCE_NAME, 'CA'),
    (NameOID.LOCALITY_NAME, 'SF'),
    (NameOID.ORGANIZATION_NAME, 'JobWorker'),
]


class Identity(NamedTuple):
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    chain: bytes = b''  # PEM of the certificates between this one and the root

    def pem(self):
        return self.certificate.public_bytes(serialization.Encoding.PEM) + self.chain

    def key_pem(self):
        return self.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                      serialization.NoEncryption())


def utc_now():
    return datetime.datetime.utcnow().replace(microsecond=0)


def subject_of(common_names, one_rdn=False):
    rdns = [[x509.NameAttribute(*part)] for part in ORGANISATION]
    names = [x509.NameAttribute(NameOID.COMMON_NAME, name) for name in common_names]
    rdns += [names] if one_rdn else [[name] for name in names]
    return x509.Name([x509.RelativeDistinguishedName(rdn) for rdn in rdns])


def issue(issuer, *common_names, one_rdn=False, sans=(), usages=(CLIENT,), authority=False, chain=b'', starts=None,
          ends=None):
    """A certificate signed by `issuer`, or by itself when that is None. Valid from yesterday until tomorrow."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = subject_of(common_names, one_rdn)
    builder = (x509.CertificateBuilder().subject_name(subject)
               .issuer_name(issuer.certificate.subject if issuer else subject)
               .public_key(key.public_key()).serial_number(x509.random_serial_number())
               .not_valid_before(starts or utc_now() - DAY).not_valid_after(ends or utc_now() + DAY)
               .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True))
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    if sans:
        builder = builder.add_extension(x509.SubjectAlternativeName(sans), critical=False)
    return Identity(builder.sign(issuer.key if issuer else key, hashes.SHA256()), key, chain)


def make_authority(name='Job Worker CA'):
    return issue(None, name, usages=(), authority=True)


def make_server(authority):
    names = [x509.DNSName('localhost')]
    names += [x509.IPAddress(ipaddress.ip_address(address)) for address in ('127.0.0.1', '::1')]
    return issue(authority, 'worker', sans=names, usages=(SERVER,))


def make_list(authority, *revoked, starts=None, ends=None):
    """A list of revoked certificates, as PEM text. Valid from yesterday until tomorrow."""
    builder = (x509.CertificateRevocationListBuilder().issuer_name(authority.certificate.subject)
               .last_update(starts or utc_now() - DAY).next_update(ends or utc_now() + DAY))
    for identity in revoked:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder().serial_number(identity.certificate.serial_number)
            .revocation_date(utc_now()).build())
    return builder.sign(authority.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def load(directory, name):
    with open(os.path.join(directory, f'{name}.pem'), 'rb') as file:
        certificate = x509.load_pem_x509_certificate(file.read())
    with open(os.path.join(directory, f'{name}-key.pem'), 'rb') as file:
        return Identity(certificate, serialization.load_pem_private_key(file.read(), None))


def save(directory, name, identity):
    with open(os.path.join(directory, f'{name}.pem'), 'wb') as file:
        file.write(identity.pem())
    key_file = os.open(os.path.join(directory, f'{name}-key.pem'), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(key_file, 'wb') as file:
        file.write(identity.key_pem())
