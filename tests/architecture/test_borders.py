"""Each outside system is reached in one place, and nothing anywhere runs code that is data."""

import ast
import subprocess
import sys
from fnmatch import fnmatch

import pytest
from sources import ROOT, Source, broken, dotted, everything, imports, planted, project

PREFECT_DECORATORS = {"flow", "task", "tags", "get_run_logger", "flow_run_name", "task_run_name"}

# Library -> patterns of the modules that may import it, each with its reason.
HOMES = {
    "boto3": {"tasks/object_store.py": "S3"},
    "botocore": {"tasks/object_store.py": "S3"},
    "mlflow": {
        "tasks/tracking*.py": "MLflow",
        "tasks/adapter_model.py": "the model from code, which MLflow runs without fedloom",
    },
    "great_expectations": {"tasks/expectations.py": "the gate"},
    "transformers": {
        "fl_core/models/*.py": "base models",
        "tasks/adapter_model.py": "the model from code, which MLflow runs without fedloom",
    },
    "peft": {
        "fl_core/models/*.py": "adapters on base models",
        "tasks/adapter_model.py": "the model from code, which MLflow runs without fedloom",
    },
    "huggingface_hub": {"fl_core/models/loading.py": "pinned snapshots of base models"},
    "dp_accounting": {
        "fl_core/privacy/accountants.py": "accountants",
        "fl_core/privacy/events.py": "our events as its events",
    },
    "cryptography": {
        "fl_core/updates/signing.py": "Ed25519",
        "fl_core/privacy/randomness.py": "the AES-CTR noise stream",
        "fl_core/privacy/ledger.py": "the type of a private key that entries are signed with",
        "tasks/certificates.py": "certificates of the gateway and of sites",
    },
    "yaml": {
        "fl_core/campaign/loading.py": "campaign files of people",
        "flows/campaign_jobs.py": "the manifest of a Kubernetes Job",
    },
    "pyarrow": {"tasks/site_rows.py": "parquet"},
    "pandas": {
        "fl_core/data/*.py": "frames of rows",
        "tasks/site_rows.py": "reads files into frames",
        "tasks/row_gate.py": "splits frames by verdict",
        "tasks/expectations.py": "the gate works on frames",
        "tasks/adapter_model.py": "pyfunc takes and returns frames",
        "flows/demo_data.py": "reads the demo's table",
    },
    "matplotlib": {"tasks/plan_figure.py": "the plot of a plan"},
    "markdown_it": {"tasks/statement_page.py": "the statement as a page"},
    "starlette": {
        "flows/gateway/*.py": "the sites' door",
        "flows/egress.py": "the way out of a site",
    },
    "uvicorn": {
        "flows/gateway/*.py": "the sites' door",
        "flows/egress.py": "the way out of a site",
    },
    "psycopg2": {"flows/postgres.py": "is the database up"},
    "typer": {"flows/cli/*.py": "the command line"},
    "rich": {"flows/cli/*.py": "tables and progress"},
    "torch": {
        "fl_core/models/*.py": "models",
        "fl_core/training/*.py": "training",
        "fl_core/evaluation/*.py": "evaluation",
        "fl_core/facade.py": "the loop over any torch module",
        "flows/cli/simulation.py": "number of threads",
        "flows/baselines.py": "number of threads",
        "tasks/client_steps.py": "number of threads",
        "tasks/audit_steps.py": "number of threads",
        "tasks/adapter_model.py": "the model from code",
    },
}

# The Prefect API: `flow` and `task` decorators and run loggers may be anywhere in flows and tasks.
PREFECT_API = {
    "flows/dispatch.py": "starts, watches and cancels runs",
    "flows/sessions.py": "finds, starts and cancels the sites' sessions",
    "flows/session_watch.py": "looks after them while a round is open",
    "flows/worker_leases.py": "asks whether a site's worker is there",
    "flows/registration.py": "pools and deployments, from its own command",
    "flows/automations.py": "what the server watches, registered with them",
    "flows/schedules.py": "schedules of campaigns",
    "flows/site_worker.py": "the site's worker",
    "flows/site_presence.py": "who of the sites is there, for one command",
    "flows/run_requests.py": "reads what the deployment of a run names",
    "flows/warm_child.py": "runs the allow-listed flow inside the worker's child",
    "flows/local_workers.py": "points registration at the stack that it starts",
    "flows/health.py": "the doctor asks whether the API answers",
    "tasks/reports.py": "artifacts and progress",
}

# Where code is found by a name, and why the name is not data.
BY_NAME = {
    "fl_core/__init__.py": "a constant table of public names",
    "fl_core/campaign/components.py": "entry points of installed packages, which are code already",
    "flows/warm_child.py": "the worker's own allow-list, made in code",
}

UNPICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
EVALUATORS = {"eval", "exec", "compile", "__import__"}
LOADERS = {"importlib.import_module", "import_module", "importlib.__import__", "runpy.run_path"}
UNSAFE_YAML = {"yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all"}


def libraries_stay_at_home(source: Source):
    for module, node in imports(source):
        homes = HOMES.get(module.partition(".")[0])
        if homes is not None and not any(fnmatch(source.path, home) for home in homes):
            yield f"{source.at(node)} imports {module}"


def prefect_api_is_called_in_its_places(source: Source):
    if source.path in PREFECT_API:
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ImportFrom) and node.module == "prefect":
            found = {alias.name for alias in node.names} - PREFECT_DECORATORS
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("prefect."):
            found = {node.module} - {"prefect.context", "prefect.runtime", "prefect.cache_policies"}
        elif isinstance(node, ast.Import):
            found = {a.name for a in node.names if a.name.partition(".")[0] == "prefect"}
        else:
            continue
        if found:
            yield f"{source.at(node)} imports {', '.join(sorted(found))} of prefect"


def nothing_unpickles(source: Source):
    for module, node in imports(source):
        if module.partition(".")[0] in UNPICKLERS:
            yield f"{source.at(node)} imports {module}"
    for call in _calls(source):
        name = dotted(call.func)
        if name in EVALUATORS or name in UNSAFE_YAML:
            yield f"{source.at(call)} calls {name}"
        elif name == "torch.load" and not _says(call, "weights_only", value=True):
            yield f"{source.at(call)} calls torch.load without weights_only=True"
        elif _says(call, "allow_pickle", value=True):
            yield f"{source.at(call)} allows pickles"
        elif name.endswith(("read_pickle", "to_pickle", "from_named_tuple")):
            yield f"{source.at(call)} calls {name}"


def code_of_models_is_not_run(source: Source):
    for node in ast.walk(source.tree):
        named = isinstance(node, ast.keyword) and node.arg == "trust_remote_code"
        if named and not (isinstance(node.value, ast.Constant) and node.value.value is False):
            yield f"{source.path}:{node.value.lineno} sets trust_remote_code"
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                is_it = isinstance(key, ast.Constant) and key.value == "trust_remote_code"
                if is_it and not (isinstance(value, ast.Constant) and value.value is False):
                    yield f"{source.at(node)} sets trust_remote_code"


def code_is_not_found_by_name(source: Source):
    if source.path in BY_NAME:
        return
    for call in _calls(source):
        if dotted(call.func) in LOADERS:
            yield f"{source.at(call)} calls {dotted(call.func)}"


def checks_run_in_production(source: Source):
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Assert):
            yield f"{source.at(node)} asserts, which python -O leaves out"


def fnmatch_any(paths, pattern):
    return any(fnmatch(path, pattern) for path in paths)


def _calls(source):
    return (node for node in ast.walk(source.tree) if isinstance(node, ast.Call))


def _says(call, name, *, value):
    return any(
        k.arg == name and isinstance(k.value, ast.Constant) and k.value.value is value
        for k in call.keywords
    )


RULES = [
    libraries_stay_at_home,
    prefect_api_is_called_in_its_places,
    nothing_unpickles,
    code_of_models_is_not_run,
    code_is_not_found_by_name,
    checks_run_in_production,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.__name__)
def test_no_module_breaks_the_rule(rule):
    assert broken(rule) == []


@pytest.mark.parametrize("library", HOMES)
def test_every_home_of_a_library_still_imports_it(library):
    users = {
        source.path
        for source in project()
        for module, _ in imports(source)
        if module.partition(".")[0] == library
    }

    assert [home for home in HOMES[library] if not fnmatch_any(users, home)] == []


@pytest.mark.parametrize("rule", [code_of_models_is_not_run], ids=lambda r: r.__name__)
def test_tests_and_examples_keep_the_rule_too(rule):
    assert broken(rule, everything()) == []


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (libraries_stay_at_home, "def f():\n    import mlflow.pyfunc"),
        (libraries_stay_at_home, "from peft import LoraConfig"),
        (prefect_api_is_called_in_its_places, "from prefect import flow, get_client"),
        (prefect_api_is_called_in_its_places, "from prefect.client.orchestration import x"),
        (prefect_api_is_called_in_its_places, "import prefect.settings"),
        (nothing_unpickles, "import cloudpickle"),
        (nothing_unpickles, "eval('1')"),
        (nothing_unpickles, "torch.load(p)"),
        (nothing_unpickles, "torch.load(p, weights_only=False)"),
        (nothing_unpickles, "yaml.load(text, Loader=yaml.Loader)"),
        (nothing_unpickles, "numpy.load(p, allow_pickle=True)"),
        (nothing_unpickles, "dp.from_named_tuple(t)"),
        (code_of_models_is_not_run, "load(p, trust_remote_code=True)"),
        (code_of_models_is_not_run, "o = {'trust_remote_code': chosen}"),
        (code_is_not_found_by_name, "import importlib\nimportlib.import_module(name)"),
        (checks_run_in_production, "assert x"),
    ],
)
def test_rule_finds_what_is_planted(rule, text):
    assert len(list(rule(planted(text)))) >= 1


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (nothing_unpickles, "model.eval()\ntorch.load(p, weights_only=True)\nyaml.safe_load(t)"),
        (nothing_unpickles, "re.compile('x')"),
        (code_of_models_is_not_run, "load(p, trust_remote_code=False)"),
        (prefect_api_is_called_in_its_places, "from prefect import flow, task"),
    ],
)
def test_rule_lets_sound_code_pass(rule, text):
    assert list(rule(planted(text))) == []


def test_layers_hold():
    # The cache of import-linter can keep an import of a file that was half-written.
    command = [f"{sys.prefix}/bin/lint-imports", "--no-cache"]

    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert found.returncode == 0, found.stdout


def test_contracts_name_every_package_of_the_core():
    # `exhaustive` refuses a package that no layer names; this is the check that it is on.
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")

    assert "exhaustive = true" in text
