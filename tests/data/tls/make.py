#!/usr/bin/env python3
"""Make the files of this directory: make.py [DIRECTORY]. Needs openssl 3, and Python's ssl module.

Certificates are valid for a hundred years. The password is 1234.
"""
import os
import ssl
import subprocess
import sys

DIRECTORY = sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__))


def openssl(*arguments, output=None):
    command = ['openssl'] + [str(argument) for argument in arguments]
    done = subprocess.run(command, cwd=DIRECTORY, check=True, capture_output=True)
    if output:
        with open(os.path.join(DIRECTORY, output), 'wb') as f:
            f.write(done.stdout)


def keys():
    """One key in every form that there is."""
    openssl('genpkey', '-algorithm', 'EC', '-pkeyopt', 'ec_paramgen_curve:P-256',
            '-out', 'key-pkcs8.pem')
    openssl('ec', '-in', 'key-pkcs8.pem', '-out', 'key-sec1.pem')
    for cipher in 'des3', 'aes128', 'aes192', 'aes256', 'camellia256':
        openssl('ec', '-in', 'key-pkcs8.pem', '-' + cipher, '-passout', 'pass:1234',
                '-out', 'key-sec1-%s.pem' % cipher)
    for name, options in {
            'aes256': ['-v2', 'aes-256-cbc'],
            'aes128-sha1': ['-v2', 'aes-128-cbc', '-v2prf', 'hmacWithSHA1'],
            'des3': ['-v2', 'des3'],
            'scrypt': ['-scrypt'],
            'pbes1': ['-v1', 'PBE-SHA1-3DES']}.items():
        openssl('pkcs8', '-topk8', '-in', 'key-pkcs8.pem', '-passout', 'pass:1234', *options,
                '-out', 'key-pkcs8-%s.pem' % name)
    openssl('genrsa', '-traditional', '-out', 'key-rsa.pem', 2048)
    openssl('rsa', '-in', 'key-rsa.pem', '-traditional', '-aes256', '-passout', 'pass:1234',
            '-out', 'key-rsa-aes256.pem')
    openssl('genpkey', '-algorithm', 'ED25519', '-out', 'key-ed25519.pem')
    openssl('genpkey', '-algorithm', 'EC', '-pkeyopt', 'ec_paramgen_curve:P-521',
            '-out', 'key-p521.pem')
    openssl('genrsa', '-out', 'key-rsa1024.pem', 1024)


def certificates():
    """What `openssl x509 -req` made without options until OpenSSL 3.4: version 1."""
    for name, key in ('cert', 'key-pkcs8.pem'), ('cert-rsa', 'key-rsa.pem'):
        openssl('req', '-new', '-x509', '-key', key, '-subj', '/CN=localhost', '-days', 36500,
                '-addext', 'basicConstraints=critical,CA:FALSE',
                '-addext', 'subjectAltName=DNS:localhost', '-out', name + '.pem')
    openssl('req', '-new', '-x509', '-key', 'key-pkcs8.pem', '-subj', '/O=Standby/CN=test CA',
            '-addext', 'keyUsage=critical,keyCertSign', '-days', 36500, '-out', 'ca.pem')
    openssl('req', '-new', '-key', 'key-rsa.pem', '-subj', '/O=Standby/CN=old client',
            '-out', 'request.pem')
    openssl('x509', '-req', '-in', 'request.pem', '-CA', 'ca.pem', '-CAkey', 'key-pkcs8.pem',
            '-set_serial', 7, '-days', 36500, '-out', 'version1.pem')
    openssl('x509', '-req', '-in', 'request.pem', '-signkey', 'key-rsa.pem',
            '-set_serial', 8, '-days', 36500, '-out', 'version1-self.pem')
    os.remove(os.path.join(DIRECTORY, 'request.pem'))


def hellos():
    """The first bytes of OpenSSL's clients."""
    for name, version in ('tls12', ssl.TLSVersion.TLSv1_2), ('tls13', ssl.TLSVersion.TLSv1_3):
        context = ssl.create_default_context()
        context.minimum_version = context.maximum_version = version
        received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = context.wrap_bio(received, sent, server_hostname='localhost')
        try:
            client.do_handshake()
        except ssl.SSLWantReadError:
            pass
        with open(os.path.join(DIRECTORY, 'hello-%s.bin' % name), 'wb') as f:
            f.write(sent.read())


if __name__ == '__main__':
    keys()
    certificates()
    hellos()
