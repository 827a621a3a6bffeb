"""A one-step generator as a program that needs none of this package: `torch.export` or ONNX, compared with PyTorch."""

from pathlib import Path

import torch
from torch import Tensor, nn

from epg.drawing import jumping
from epg.errors import OutputError, UserError, cause
from epg.extras import install
from epg.generator import Generator
from epg.randomness import integers
from epg.storage.artefact import size_of

TOLERANCE = 1e-4  # of pixels in [0, 1]: a fortieth of a grey level
OPSET = 20
ONE_FILE = 1.9e9  # bytes of weights that fit into an ONNX file with all else; more go into a file beside it


class OneStep(nn.Module):
    """Standard normal noise (N, C, H, W) and labels (N,) int64 -> pixels (N, C, H, W) in [0, 1]."""

    def __init__(self, model: Generator) -> None:
        super().__init__()
        if not jumping(model.sampling.sampler):
            raise UserError("only a one-step model draws in one step; this is a diffusion model")
        self.denoiser = model.denoiser
        self._model = model
        self._sigma_max = model.shift * model.noise.sigma_max

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        # samplers.one_step, with the level as a constant of the program
        values = self._model.denoiser_for(labels)(noise * self._sigma_max, self._sigma_max)
        return self._model.normalizer.decode_unit(values).clamp(0, 1)

    def example(self, count: int, seed: int = 0) -> tuple[Tensor, ...]:
        """Inputs for `count` images."""
        noise = self._model.unit_noise(range(count), seed)
        classes = self._model.num_classes
        if not classes:
            return (noise,)
        labels = torch.from_numpy(integers(classes, count, seed, "labels of an example"))
        return noise, labels.to(noise.device)


def export_program(model: Generator, file: Path) -> float:
    """Writes a `torch.export` program (.pt2) for any number of images; returns its largest difference from PyTorch.

    Raises UserError for a diffusion model; OutputError where the file cannot be written or computes something else.
    """
    network = OneStep(model).eval()
    program = traced(network)
    try:
        torch.export.save(program, file)
    except OSError as error:
        raise OutputError(f"--out {file.name}: cannot be written ({cause(error)})") from error
    loaded = torch.export.load(file).module()
    return compared(network, lambda *tensors: loaded(*tensors), file)


def export_onnx(model: Generator, file: Path) -> float:
    """Writes an ONNX model for any number of images; returns its largest difference from PyTorch under ONNX Runtime.

    Raises UserError for a diffusion model or without the libraries; OutputError as `export_program`.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"--to onnx needs {error.name}: {install('onnx')}") from None
    network = OneStep(model).eval()
    names = ["noise", "labels"] if model.num_classes else ["noise"]
    try:
        torch.onnx.export(
            traced(network),
            f=file,
            input_names=names,
            output_names=["images"],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
            external_data=size_of({"all": network.state_dict()}) > ONE_FILE,
        )
    except OSError as error:
        raise OutputError(f"--out {file.name}: cannot be written ({cause(error)})") from error
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def run(*tensors: Tensor) -> Tensor:
        fed = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
        return torch.from_numpy(session.run(None, fed)[0])

    return compared(network, run, file)


@torch.no_grad()
def traced(network: OneStep) -> torch.export.ExportedProgram:
    """The program for any number of images, the first dimension of every input."""
    inputs = network.example(2)
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(network, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs), strict=True)


@torch.no_grad()
def compared(network: OneStep, run: object, file: Path) -> float:
    """Largest difference of pixels in [0, 1] over batches that were not exported with. Raises OutputError."""
    assert callable(run)
    batches = [network.example(count, seed=count) for count in (1, 3)]
    worst = float(torch.stack([(run(*inputs) - network(*inputs)).abs().max() for inputs in batches]).max())
    if not worst <= TOLERANCE:
        raise OutputError(f"{file.name}: its images differ from PyTorch's by {worst:.2g} of 1; it is not to be used")
    return worst
