"""A server that speaks S3 (moto's), in this process, with faults built in before it.

`faults` is a list of (method, part of the path, HTTP status, S3 error code): such requests fail.
"""

import contextlib
import importlib.util
import threading

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}
MISSING = [name for name in ("s3fs", "moto", "flask") if importlib.util.find_spec(name) is None]


@contextlib.contextmanager
def s3_server(faults=()):
    """The environment with which programs find the server, which has one bucket, `bucket`."""
    import boto3
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Silent(WSGIRequestHandler):
        def log(self, *arguments):
            pass

    moto = DomainDispatcherApplication(create_backend_app)

    def application(environ, start_response):
        for method, part, status, code in faults:
            if environ["REQUEST_METHOD"] == method and part in environ["PATH_INFO"]:
                with contextlib.suppress(OSError, ValueError):
                    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start_response(f"{status} {code}", [("Content-Type", "application/xml")])
                body = f"<Error><Code>{code}</Code><Message>{code} was built in</Message></Error>"
                return [body.encode()]
        return moto(environ, start_response)

    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Silent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.port}"
    boto3.client(
        "s3",
        endpoint_url=address,
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        region_name="us-east-1",
    ).create_bucket(Bucket="bucket")
    try:
        yield {**CREDENTIALS, "AWS_ENDPOINT_URL": address}
    finally:
        server.shutdown()
