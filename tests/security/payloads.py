"""S1: files that run code when something careless reads them. The code makes a canary file."""

import base64
import gzip
import io
import json
import pickle
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

MARK = "EPG-CANARY"  # in all code of a payload, so that an audit hook recognises it


class Bomb:
    """Unpickling one makes the canary file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (code(self.canary),)


def code(canary: Path) -> str:
    return f"open({str(canary)!r}, 'w').write('{MARK}')"


def bomb(canary: Path, protocol: int = 2) -> bytes:
    return pickle.dumps({"model": Bomb(canary)}, protocol=protocol)


def zip_pt(folder: Path, canary: Path) -> Path:
    torch.save({"weight": torch.zeros(2), "model": Bomb(canary)}, folder / "model.pt")
    return folder / "model.pt"


def legacy_pt(folder: Path, canary: Path) -> Path:
    torch.save({"model": Bomb(canary)}, folder / "model.pth", _use_new_zipfile_serialization=False)
    return folder / "model.pth"


def tar_pt(folder: Path, canary: Path) -> Path:
    with tarfile.open(folder / "model.tar", "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            content = bomb(canary)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return (folder / "model.tar").rename(folder / "model.pt")


def torchscript(folder: Path, canary: Path) -> Path:
    with zipfile.ZipFile(folder / "scripted.pt", "w") as archive:
        archive.writestr("scripted/version", "3\n")
        archive.writestr("scripted/data.pkl", bomb(canary))
        archive.writestr("scripted/constants.pkl", bomb(canary))
        archive.writestr("scripted/code/__torch__.py", code(canary))
    return folder / "scripted.pt"


def plain_pickle(folder: Path, canary: Path) -> Path:
    (folder / "model.pkl").write_bytes(bomb(canary))
    return folder / "model.pkl"


def text_pickle(folder: Path, canary: Path) -> Path:
    (folder / "model.pth").write_bytes(bomb(canary, protocol=0))
    return folder / "model.pth"


def persistence_pickle(folder: Path, canary: Path) -> Path:
    """As EDM's: the source of a class travels with it."""
    meta = {"type": "class", "version": 6, "module_src": code(canary), "class_name": "Net", "state": Bomb(canary)}
    (folder / "network-snapshot.pkl").write_bytes(pickle.dumps({"ema": meta}))
    return folder / "network-snapshot.pkl"


def compressed_pickle(folder: Path, canary: Path) -> Path:
    (folder / "last.ckpt").write_bytes(gzip.compress(bomb(canary)))
    return folder / "last.ckpt"


def object_npy(folder: Path, canary: Path) -> Path:
    np.save(folder / "images.npy", np.array([Bomb(canary)], dtype=object), allow_pickle=True)
    return folder / "images.npy"


def object_npz(folder: Path, canary: Path) -> Path:
    bombs = np.array([Bomb(canary)], dtype=object)
    np.savez(folder / "reference.npz", arr_0=bombs, mu=bombs, sigma=bombs, mu_s=bombs, sigma_s=bombs)
    return folder / "reference.npz"


def dcp_folder(folder: Path, canary: Path) -> Path:
    (folder / ".metadata").write_bytes(bomb(canary))
    (folder / "__0_0.distcp").write_bytes(bomb(canary))
    return folder


def accelerate_folder(folder: Path, canary: Path) -> Path:
    for name in ("custom_checkpoint_0.pkl", "random_states_0.pkl", "optimizer.bin", "scheduler.bin"):
        (folder / name).write_bytes(bomb(canary))
    torch.save({"model": Bomb(canary)}, folder / "pytorch_model.bin")
    return folder


def python_yaml(folder: Path, canary: Path) -> Path:
    (folder / "recipe.yaml").write_text(f'data: !!python/object/apply:builtins.exec ["{code(canary)}"]\n')
    return folder / "recipe.yaml"


def target_yaml(folder: Path, canary: Path) -> Path:
    (folder / "recipe.yaml").write_text(
        f'objective: {{kind: diffusion, _target_: builtins.exec, _args_: ["{code(canary)}"]}}\n'
    )
    return folder / "recipe.yaml"


def custom_pipeline(folder: Path, canary: Path) -> Path:
    """A diffusers folder that names code of its own."""
    (folder / "pipeline.py").write_text(code(canary))
    (folder / "evil.py").write_text(code(canary))
    (folder / "model_index.json").write_text(
        json.dumps({"_class_name": ["pipeline", "Evil"], "transformer": ["evil", "Evil"], "_module": "os.system"})
    )
    (inner := folder / "transformer").mkdir()
    (inner / "config.json").write_text(json.dumps({"_class_name": "Evil", "auto_map": {"AutoModel": "evil.Evil"}}))
    (inner / "diffusion_pytorch_model.bin").write_bytes(bomb(canary))
    return folder


def class_path_json(folder: Path, canary: Path) -> Path:
    """An export folder of ours whose JSON asks for classes."""
    weights = safetensors({})
    (folder / "model.safetensors").write_bytes(weights)
    config = {"_target_": "builtins.exec", "args": [code(canary)], "py/object": "os.system", "class_path": "os.system"}
    content = {
        "format": 1,
        "step": 1,
        "kind": "model",
        "class_names": [],
        "class_counts": [],
        "config": config,
        "weights": {},
    }
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def safetensors(metadata: dict[str, str]) -> bytes:
    header = json.dumps({"__metadata__": metadata, "w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})
    return struct.pack("<Q", len(header)) + header.encode() + struct.pack("<f", 1.0)


def safetensors_metadata(folder: Path, canary: Path) -> Path:
    encoded = base64.b64encode(bomb(canary)).decode()
    file = folder / "model.safetensors"
    file.write_bytes(safetensors({"format": "pickle", "__reduce__": code(canary), "pickle": encoded}))
    return file


def disguised_pickle(folder: Path, canary: Path) -> Path:
    (folder / "model.safetensors").write_bytes(bomb(canary))
    return folder / "model.safetensors"


def linked_weights(folder: Path, canary: Path, good: Path) -> Path:
    """A real run whose weights are a link to a pickle."""
    shutil.copytree(good, run := folder / "run")
    (folder / "weights.pt").write_bytes(bomb(canary))
    for file in run.rglob("*.safetensors"):
        file.unlink()
        file.symlink_to(folder / "weights.pt")
    return run


def pickle_in_run(folder: Path, canary: Path, good: Path) -> Path:
    """A real run with pickles beside and in place of its files."""
    shutil.copytree(good, run := folder / "run")
    for step in (run / "checkpoints").iterdir():
        (step / "optimizer.pt").write_bytes(bomb(canary))
        (step / "state.json").write_bytes(bomb(canary))
    for file in (run / "export").glob("config.json"):
        file.write_bytes(bomb(canary))
    return run


def web_shard(folder: Path, canary: Path) -> Path:
    """A WebDataset shard with members that its decoders unpickle."""
    with tarfile.open(folder / "shard.tar", "w") as archive:
        for name in ("0000.pkl", "0000.pyd", "0000.pt", "0000.npy"):
            content = bomb(canary)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return folder / "shard.tar"


def loading_script(folder: Path, canary: Path) -> Path:
    """A data set folder with a script of its own, which `datasets` once ran."""
    (folder / f"{folder.name}.py").write_text(code(canary))
    (folder / "dataset_infos.json").write_text("{}")
    (folder / "sitecustomize.py").write_text(code(canary))
    return folder


def pickled_images(folder: Path, canary: Path) -> Path:
    """Pickles that are called pictures, in class folders."""
    for i in range(3):
        (inner := folder / "images" / f"class{i}").mkdir(parents=True)
        (inner / "a.png").write_bytes(bomb(canary))
    return folder / "images"


Builder = Callable[[Path, Path], Path]
PAYLOADS: list[Builder] = [
    zip_pt,
    legacy_pt,
    tar_pt,
    torchscript,
    plain_pickle,
    text_pickle,
    persistence_pickle,
    compressed_pickle,
    object_npy,
    object_npz,
    dcp_folder,
    accelerate_folder,
    python_yaml,
    target_yaml,
    custom_pipeline,
    class_path_json,
    safetensors_metadata,
    disguised_pickle,
    web_shard,
    loading_script,
    pickled_images,
]
WITH_RUN = [linked_weights, pickle_in_run]  # these need a real run to spoil
