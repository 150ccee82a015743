"""python -m featurestore.cli"""

from featurestore.cli.main import run

run()
