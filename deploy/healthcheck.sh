#!/usr/bin/env bash
# Healthy is a container whose backend can run; that ONNX Runtime can, which doctor's exit code tells, is not enough.
set -euo pipefail

report=$(impasto doctor --json) || exit 1
python3 -c '
import json, os, sys

name = os.environ["IMPASTO_BACKEND"]
# "auto" runs if the last that it takes does.
backend = json.loads(sys.argv[1])["backends"]["onnxruntime" if name == "auto" else name]
print(backend["detail"])
sys.exit(0 if backend["available"] else 1)
' "$report"
