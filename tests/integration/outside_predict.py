"""Loads a model version and answers texts, where fedloom cannot be imported; run by the tests.

Arguments: model URI, JSON list of texts. Output: one JSON document.
"""

import json
import sys
from importlib.abc import MetaPathFinder


class Blocker(MetaPathFinder):
    """Refuses what a machine without fedloom does not have."""

    def find_spec(self, fullname, *_):
        if fullname.split(".")[0] in {"fl_core", "tasks", "flows", "fedloom"}:
            raise ModuleNotFoundError(fullname)


sys.meta_path.insert(0, Blocker())

import mlflow

model = mlflow.pyfunc.load_model(sys.argv[1])
texts = json.loads(sys.argv[2])
found = {"answers": model.predict(texts)}
inner = model.unwrap_python_model()
if inner.is_classifier:
    found["logits"] = inner.logits(texts).tolist()
found["fedloom"] = [name for name in sys.modules if name.split(".")[0] in {"fl_core", "tasks"}]
sys.stdout.write(json.dumps(found))
