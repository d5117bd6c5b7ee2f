"""What `import tensorrt` gives in the child processes of our tests: the double, as `EDGEBERT_TEST_TENSORRT` describes it."""

import json
import os
import sys

from tests.tensorrt.double import script_from_environment, tensorrt_double

_version = json.loads(os.environ.get("EDGEBERT_TEST_TENSORRT", "{}")).get("version", "10.3.0")
sys.modules[__name__] = tensorrt_double(_version, script_from_environment())
