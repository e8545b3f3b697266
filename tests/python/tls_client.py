"""A client with a certificate, for any Python that ZEO 5 or 6 runs on.

    tls_client.py PORT SERVER_PEM CLIENT_PEM CLIENT_KEY
"""
from __future__ import print_function, unicode_literals

import logging
import ssl
import sys

import transaction
import ZODB
from ZEO.ClientStorage import ClientStorage


def main(port, server, certificate, key):
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(server))
    context.load_cert_chain(str(certificate), str(key))
    context.check_hostname = False
    # As the clients of ZEO's tests: a self-signed certificate is no good authority.
    context.verify_flags &= ~getattr(ssl, 'VERIFY_X509_STRICT', 0)
    storage = ClientStorage(('127.0.0.1', port), ssl=context, wait_timeout=30)
    db = ZODB.DB(storage)
    connection = db.open()
    name = 'python %d.%d' % sys.version_info[:2]
    connection.root()[name] = 'x' * 300000
    transaction.commit()
    connection.cacheMinimize()
    assert len(connection.root()[name]) == 300000
    connection.close()
    db.close()


if __name__ == '__main__':
    logging.basicConfig(level=logging.WARNING)
    main(int(sys.argv[1]), *sys.argv[2:])
