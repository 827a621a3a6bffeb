"""S4: configurations that want more than to choose registered names and plain numbers."""

from collections.abc import Iterator

GOOD = """\
data: {source: digits, image_size: 8, channels: 1, normalization: symmetric, workers: 0}
model:
  patch_size: 4
  encoder: {depth: 1, width: 16, heads: 2}
  decoder: {width: 16, heads: 2}
  projector_hidden: 16
  projector_out: 16
noise: {shift: 1.0}
pretraining:
  objective: {flip: false, views: {kind: affine}}
  optimizer: {lr: 1.0e-3, warmup_steps: 0}
  training: {batch_size: 16, steps: 1, ema: [], trackers: [], preview_every: 0, device: cpu}
"""
SECTIONS = ("data", "model", "noise", "pretraining", "objective", "optimizer", "training", "sampling", "model.encoder")


def with_line(path: str, value: str) -> str:
    """The good recipe with one more setting; the last part of `path` is the key."""
    *sections, key = path.split(".")
    if sections and sections[0] in ("objective", "optimizer", "training", "sampling"):
        sections = ["pretraining", *sections]
    if not sections:
        return f"{GOOD}{key}: {value}\n"
    line = "".join("  " * i + f"{name}:\n" for i, name in enumerate(sections))
    return f"base: good.yaml\n{line}{'  ' * len(sections)}{key}: {value}\n"


def hostile() -> Iterator[tuple[str, str, str]]:
    """(name, YAML, word that the refusal must contain)."""
    yield from unknown_keys()
    yield from python_objects()
    yield from wrong_values()
    yield from shapes()


def unknown_keys() -> Iterator[tuple[str, str, str]]:
    for key in (
        "_target_",
        "_class_name",
        "class_path",
        "__class__",
        "__import__",
        "py/object",
        "auto_map",
        "callable",
    ):
        for section in SECTIONS:
            yield f"{section} {key}", with_line(f"{section}.{key}", "os.system"), key
    for section, typo, meant in [
        ("data", "imagesize", "image_size"),
        ("data", "sorce", "source"),
        ("data", "image-size", "image_size"),
        ("model", "patchsize", "patch_size"),
        ("model.encoder", "dept", "depth"),
        ("noise", "sigma_mni", "sigma_min"),
        ("objective", "momentun", "momentum"),
        ("objective.views", "degrese", "degrees"),
        ("optimizer", "learning_rate", "there are kind, lr"),
        ("optimizer", "warmup_step", "warmup_steps"),
        ("training", "batchsize", "batch_size"),
        ("training", "step", "steps"),
        ("sampling", "smapler", "sampler"),
    ]:
        yield f"typo {section}.{typo}", with_line(f"{section}.{typo}", "3"), meant
    yield "typo of a section", GOOD + "sampilng: {steps: 3}\n", "sampling"


def python_objects() -> Iterator[tuple[str, str, str]]:
    for tag in (
        "!!python/name:os.system",
        "!!python/object/apply:os.system ['touch CANARY']",
        "!!python/object/new:subprocess.Popen [['touch', 'CANARY']]",
        "!!python/module:antigravity",
        "!!python/tuple [1, 2]",
        "!custom {a: 1}",
        "!!binary Z2l0",
        "!!set {a, b}",
        "!!timestamp 2020-01-01",
        "!!omap [a: 1]",
    ):
        for path in ("training.steps", "data", "seed"):
            yield f"{path} {tag}", with_line(path, tag), "line" if "python" in tag or "custom" in tag else path


def wrong_values() -> Iterator[tuple[str, str, str]]:
    sizes = ("data.image_size", "model.patch_size", "model.encoder.width", "training.batch_size", "training.steps")
    for path in (*sizes, "model.encoder.depth", "model.encoder.heads", "model.projector_hidden"):
        key = path.split(".")[-1]
        for value in (
            "-1",
            "0",
            "1000000000000000000000",
            ".nan",
            ".inf",
            "-.inf",
            "'${env:HOME}'",
            "[1]",
            "null",
            "1e400",
        ):
            if not (key == "seed" and value.startswith("-")):
                yield f"{path} = {value}", with_line(path, value), key.replace("_", "-") + "|" + key
    for path in ("optimizer.lr", "optimizer.weight_decay", "noise.sigma_max", "noise.shift", "model.mlp_ratio"):
        key = path.split(".")[-1]
        for value in (".nan", ".inf", "-1.0", "'1; import os'", "{}"):
            yield f"{path} = {value}", with_line(path, value), key.replace("_", "-") + "|" + key
    for value in ("os.system", "epg.samplers.heun", "builtins.eval", "__import__('os')", "../heun"):
        yield f"sampler {value}", with_line("sampling.sampler", f'"{value}"'), "sampler"
        yield f"kind {value}", with_line("objective.kind", f'"{value}"'), "objective"
        yield f"normalization {value}", with_line("data.normalization", f'"{value}"'), "normalization"
        yield f"tracker {value}", with_line("training.trackers", f'["{value}"]'), "trackers"
    for value in ("../evil", "../../evil", "/tmp/evil", "a/b", "..", ".", "", "a\\0b", "~/x", "-rf", "C:\\\\x"):
        yield f"run name {value!r}", with_line("recipe", f'"{value}"'), "recipe"
    for value in ("os.system", "${env:HOME}", "../../../etc", "a\\0b", "pipe:touch CANARY", "file:///etc/passwd"):
        yield f"source {value!r}", with_line("data.source", f'"{value}"'), "source"
    for value in ("nonsense", "cuda:99", "${DEVICE}"):
        yield f"device {value}", with_line("training.device", f'"{value}"'), "device"
    for value in ("3", "[a]", "nowhere.yaml", "../../../etc/passwd", "bad.yaml"):
        yield f"base {value}", f"base: {value}\n", "base|recipe|bad"


def shapes() -> Iterator[tuple[str, str, str]]:
    yield "10 MB", GOOD + "# " + "x" * 10_000_000 + "\n", "larger than"
    yield "deep flow", GOOD + "sampling: " + "[" * 1000 + "]" * 1000 + "\n", "deep"
    yield "deep blocks", GOOD + "".join("  " * i + "a:\n" for i in range(200)), "deep"
    yield "deep mappings", GOOD + "sampling: " + "{a: " * 1000 + "1" + "}" * 1000 + "\n", "deep"
    laughs = "a0: &a0 [lol, lol]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))
    yield "billion laughs", laughs + GOOD, "aliases"
    merges = "a0: &a0 {k0: 1}\n" + "".join(f"a{i}: &a{i} {{x: *a{i - 1}, y: *a{i - 1}}}\n" for i in range(1, 30))
    yield "mapping bomb", merges + GOOD, "aliases|deep"
    yield "endless", "a: &a [*a]\n" + GOOD, "deep"
    yield "endless mapping", "a: &a {b: *a}\n" + GOOD, "deep"
    yield "merge bomb", "a: &a {<<: *a}\n" + GOOD, "deep|YAML|aliases"
    yield "integer of 100,000 digits", with_line("training.steps", "9" * 90_000), "characters"
    yield "float of 100,000 digits", with_line("optimizer.lr", "0." + "9" * 90_000), "characters"
    yield "sexagesimal", with_line("training.steps", ":".join(["59"] * 1000)), "steps|training"
    yield "control characters", with_line("data.source", '"a\\x1b[31m\\a"'), "control"
    yield "raw NUL", GOOD + "data: a\0b\n", "YAML"
    yield "not UTF-8", GOOD + "data: \udcff\n", "UTF-8"
    yield "twice", GOOD + "noise: {shift: 2.0}\n", "twice"
    yield "list", "- 1\n", "mapping"
    yield "word", "hello\n", "mapping"
    yield "nothing", "", "mapping"
    yield "two documents", GOOD + "---\n" + GOOD, "YAML"
    yield "keys that are lists", GOOD + "? [a, b]\n: 1\n", "key"
    yield "numbers as keys", GOOD + "1: 2\n", "1"
    yield "null as key", GOOD + "null: 2\n", "null|key|None"
    yield "long key", GOOD + "k" * 90_000 + ": 1\n", "name|key|YAML"
    yield "section is a list", GOOD.replace("noise: {shift: 1.0}", "noise: [1, 2]"), "noise"
    yield "stage is a list", GOOD[: GOOD.index("pretraining")] + "pretraining: [1]\n", "pretraining"
    yield "stage is nothing", GOOD[: GOOD.index("pretraining")] + "pretraining:\n", "pretraining"
    yield "sections of a run that are lists", GOOD + "objective: [1]\n", "objective"
    yield "5,000 keys", GOOD + "".join(f"key{i}: 1\n" for i in range(5_000)), "key"
    yield "broken", GOOD + "data: {a: [1\n", "YAML"
    yield "tabs", GOOD + "\tdata: 1\n", "YAML"
    yield "undefined alias", GOOD + "x: *nowhere\n", "YAML"


# Flags of the command line -------------------------------------------------------------------------------------------

FLAGS = [
    ["--training.steps", "-1"],
    ["--training.steps", "nan"],
    ["--training.steps", "9" * 5000],
    ["--training.batch-size", "1" + "0" * 30],
    ["--optimizer.lr", "nan"],
    ["--optimizer.lr", "inf"],
    ["--optimizer.weight-decay", "nan"],
    ["--model.encoder.width", "0"],
    ["--model.encoder.heads", "-3"],
    ["--data.image-size", "1000000000"],
    ["--data.source", "a\0b"],
    ["--data.source", "x" * 100_000],
    ["--recipe", "../evil"],
    ["--recipe", "a\0b"],
    ["--training.device", "os.system"],
    ["--training._target_", "os.system"],
    ["--_target_", "os.system"],
    ["--objective.kind", "os.system"],
    ["--training.stpes", "3"],
    ["--noise.sigma-max", "inf"],
    ["--model.mlp-ratio", "nan"],
    ["--training.trackers", "os.system"],
    ["--out", "a\0b"],
]
