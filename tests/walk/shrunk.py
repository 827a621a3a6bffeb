"""How the walk makes printed commands small, and which ones it does not run."""

import shlex

NETWORK = (
    "--model.encoder.depth 1 --model.encoder.width 24 --model.encoder.heads 2 --model.decoder.width 24 "
    "--model.decoder.heads 2 --model.projector-hidden 16 --model.projector-out 8 --optimizer.warmup-steps 1 "
    "--training.batch-size 8 --training.steps 4 --training.checkpoint-every 2 --data.workers 0"
)
FLAGS = [  # beginning of a command, and what is added to it: of a flag that is there already, this value counts
    ("epg prepare", "--workers 0"),
    ("epg prepare path/to/images", "--image-size 8"),
    ("epg pretrain small --data.source path/to/images", "--data.image-size 8"),
    ("epg finetune small --data.source path/to/images", "--data.image-size 8"),
    ("epg pretrain small --data.source data/mine", "--data.image-size 8"),
    ("epg finetune small --data.source data/mine", "--data.image-size 8"),
    ("epg inspect", "--workers 0"),
    ("epg pretrain", NETWORK),
    ("epg finetune", NETWORK),
    (
        "epg finetune imagenet256-l --from released",
        "--model.encoder.depth 2 --model.encoder.width 16 --model.patch-size 2 --data.image-size 16 "
        "--training.compile False --training.precision fp32 --training.preview-every 0",
    ),
    ("epg finetune digits --from-scratch --evaluation", "--evaluation.every 2 --evaluation.count 20"),
    ("epg finetune digits --stage onestep", "--evaluation.every 4 --evaluation.count 20 --evaluation.features random"),
    ("epg sample", "--count 4"),
    ("epg evaluate", "--count 9"),
    ("epg reference my-prepared-set", "--inception inception.pth"),
    ("epg evaluate samples.npz", "--inception inception.pth"),
    ("epg sweep", "--count 9"),
    ("epg neighbours", "--count 9"),
    ("epg neighbours RUN --features inception", "--inception inception.pth --most 9"),
    ("epg denoising", "--levels 2 --count 9"),
    ("epg probe", "--levels 0.1 1"),
    ("epg features", "--levels 0.1 1 --count 9"),
    ("epg convert nnet_ema.pth", "--recipe tiny.yaml"),
]
"""Words of the page that stand for something smaller."""
WORDS = {"step-00001000": "step-00000002", "1010": "3"}
IN_PYTHON = {'"training.steps": 200, "training.preview_every": 100': '"training.steps": 2, "training.preview_every": 2'}
"""Pieces of the page's Python that stand for something smaller."""
DROPPED = {"--compile": "minutes of a C++ compiler"}

INSTALLS = "installs from the network; .ci/run does it"
HUB = "asks the Hub; tests/hub runs it against a server of its own"
SEVERAL = "several processes; tests/test_launch.py and tests/test_distributed.py start some"
MACHINES = "several machines or a cluster; tests/test_launch.py runs the scripts with stand-ins"
BENCHMARK = "a large network; tests/test_benchmarks.py and test_sampling_benchmark.py run it small"
NOT_RUN = [  # page, beginning of the command, why not
    ("README.md", "python3 -m venv .venv", INSTALLS),
    ("README.md", "epg demo", "a server that runs until it is stopped; tests/test_demo.py asks it"),
    ("evaluation.md", "epg evaluate runs/imagenet256", "50,000 samples, and files that are downloads"),
    ("launch.md", "torchrun --standalone", SEVERAL),
    ("launch.md", "torchrun --nnodes", MACHINES),
    ("launch.md", "accelerate launch", SEVERAL),
    ("launch.md", "sbatch", MACHINES),
    ("launch.md", "EPG_COMMAND=finetune sbatch", MACHINES),
    ("launch.md", "EPG_COMMAND=evaluate sbatch", MACHINES),
    ("launch.md", "kubectl", MACHINES),
    ("pipeline.md", "epg convert jiachenlei/EPG", HUB),
    ("pipeline.md", "hf auth login", HUB),
    ("pipeline.md", "epg convert runs/digits/diffusion --out digits-pipe --license apache-2.0 --dataset", HUB),
    ("pipeline.md", "epg convert runs/digits/pretraining --out digits-rcm", HUB),
    ("records.md", "benchmarks/gpu.sh", "a GPU"),
    ("results.md", "epg finetune digits", "minutes; training.md runs it small"),
    ("results.md", "epg evaluate runs/digits/", "what those minutes left"),
    ("results.md", "epg finetune small", "sixteen minutes of a core"),
    ("results.md", "epg pretrain small", "minutes of a core"),
    ("results.md", "epg sample runs/small/", "what those minutes left"),
    ("results.md", "benchmarks/gpu.sh", "a GPU"),
    ("results.md", "TINY=1 benchmarks/gpu.sh", "minutes; tests/test_ten_minutes.py runs what it calls"),
    ("sampling.md", "epg demo", "a server that runs until it is stopped; tests/test_demo.py asks it"),
    ("sampling.md", "torchrun", SEVERAL),
    ("sampling.md", "python benchmarks/", BENCHMARK),
    ("studies.md", "epg study", "minutes of a core; tests/test_study.py runs a small one"),
    ("training.md", "eval", "changes the shell; tests/test_editor.py does it in one of its own"),
    ("training.md", "epg bench", "seconds a stage; tests/test_bench.py does"),
    ("training.md", "torchrun", SEVERAL),
    ("zoo.md", "epg sample 'ADDRESS", "a download; tests/test_assets.py does it from a server of its own"),
    ("zoo.md", "epg demo", "a server that runs until it is stopped; tests/test_demo.py asks it"),
    ("README.md", "epg quickstart", "tests/test_quickstart.py does, of images among the slow tests"),
    ("tutorial.md", "pip install", INSTALLS),
    ("tutorial.md", "epg quickstart", "tests/test_quickstart.py does"),
]


def small(command: str) -> list[str]:
    """The arguments of `epg` with everything small laid over them."""
    words = [WORDS.get(word, word) for word in shlex.split(command) if word not in DROPPED]
    for long, short in WORDS.items():
        words = [word.replace(long, short) for word in words]
    for beginning, flags in FLAGS:
        if command.startswith(beginning):
            words += shlex.split(flags)
    return words[1:]


def reason(page: str, command: str) -> str | None:
    """Why a command is not run; None where it is."""
    return next((why for where, beginning, why in NOT_RUN if page == where and command.startswith(beginning)), None)
