"""Certificates for tests, made by the openssl command: good ones, and all the wrong ones."""
import os
import shutil
import subprocess

AVAILABLE = shutil.which('openssl') is not None

CA_CONF = """
[ca]
default_ca = x
[x]
database = %(directory)s/index.txt
new_certs_dir = %(directory)s
rand_serial = yes
default_md = sha256
policy = any
unique_subject = no
default_crl_days = 30
crlnumber = %(directory)s/crlnumber
[any]
commonName = supplied
organizationName = optional
"""

AUTHORITY = 'basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n'
CLIENT = 'basicConstraints=CA:FALSE\nkeyUsage=digitalSignature\nextendedKeyUsage=clientAuth\n'
# Old OpenSSL's verification wants these in strict mode.
IDENTIFIERS = 'subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid,issuer\n'


class Maker:
    """Makes keys and certificates in a directory: NAME.pem, NAME-key.pem."""

    def __init__(self, directory):
        self.directory = directory
        os.makedirs(directory, exist_ok=True)
        self.write('ca.conf', CA_CONF % {'directory': directory})
        self.write('index.txt', '')
        self.write('crlnumber', '01\n')

    def path(self, name):
        return os.path.join(self.directory, name)

    def write(self, name, text):
        with open(self.path(name), 'w') as f:
            f.write(text)
        return self.path(name)

    def read(self, name):
        with open(self.path(name)) as f:
            return f.read()

    def openssl(self, *arguments):
        done = subprocess.run(('openssl',) + arguments, cwd=self.directory, text=True,
                              stdin=subprocess.DEVNULL, capture_output=True)
        if done.returncode:
            raise AssertionError('openssl %s\n%s' % (' '.join(arguments), done.stderr))
        return done.stdout

    def key(self, name, bits=None):
        if bits:
            kind = ('RSA', '-pkeyopt', 'rsa_keygen_bits:%d' % bits)
        else:
            kind = ('EC', '-pkeyopt', 'ec_paramgen_curve:P-256')
        self.openssl('genpkey', '-algorithm', *kind, '-out', name + '-key.pem')

    def self_signed(self, name, extensions='', bits=None):
        """As `openssl req -x509` makes it: an authority, unless *extensions* say otherwise."""
        self.key(name, bits)
        options = []
        for extension in extensions.splitlines():
            options += ['-addext', extension]
        self.openssl('req', '-new', '-x509', '-key', name + '-key.pem', '-days', '30',
                     '-subj', '/CN=%s' % name, '-out', name + '.pem', *options)

    def signed(self, name, by, extensions=CLIENT, start=None, end=None, bits=None, digest='sha256'):
        """Signed by another; times are as in 20200101000000Z."""
        self.key(name, bits)
        self.request(name)
        self.write(name + '.ext', extensions + IDENTIFIERS)
        self.openssl('ca', '-batch', '-notext', '-config', 'ca.conf', '-md', digest,
                     '-cert', by + '.pem', '-keyfile', by + '-key.pem',
                     '-startdate', start or '20200101000000Z',
                     '-enddate', end or '20991231000000Z', '-extfile', name + '.ext',
                     '-in', name + '.csr', '-out', name + '.pem')

    def version_1(self, name, by=None):
        """As `openssl x509 -req` makes it without options, before OpenSSL 3.4."""
        self.key(name, 2048)
        self.request(name)
        signer = ['-CA', by + '.pem', '-CAkey', by + '-key.pem', '-CAcreateserial'] if by else [
            '-signkey', name + '-key.pem']
        self.openssl('x509', '-req', '-in', name + '.csr', '-days', '30', '-out', name + '.pem',
                     *signer)
        return 'Version: 1 ' in self.openssl('x509', '-in', name + '.pem', '-noout', '-text')

    def request(self, name):
        self.openssl('req', '-new', '-key', name + '-key.pem', '-subj', '/CN=%s' % name,
                     '-out', name + '.csr')

    def revocation_list(self, by, *revoked):
        """A list of those that *by* has revoked, as PEM."""
        issuer = ['-cert', by + '.pem', '-keyfile', by + '-key.pem', '-config', 'ca.conf']
        for name in revoked:
            self.openssl('ca', '-batch', '-revoke', name + '.pem', *issuer)
        self.openssl('ca', '-gencrl', '-out', by + '.crl', *issuer)
        return self.read(by + '.crl')
