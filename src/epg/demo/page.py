"""The page, on gradio: it asks nobody but the computer that it comes from, and takes no files."""

import os
from collections.abc import Callable
from functools import wraps
from typing import Any

from epg.demo.drawing import LAST_SEED, MOST_BETWEEN, MOST_GUIDANCE, MOST_IMAGES, MOST_STEPS, Drawer
from epg.errors import UserError

QUEUE = 20  # requests that wait; more are told to come back
NOTHING = "all in turn"


def quiet() -> Any:
    """gradio without its telemetry and its question for newer versions."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import gradio

    return gradio


def page(drawer: Drawer, title: str) -> Any:
    """The page of a model as gradio's Blocks, with a queue that draws for one at a time."""
    gr = quiet()
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        gr.Markdown(f"# {title}\n{facts(drawer)}")
        with gr.Tab("Images"):
            _images(gr, drawer)
        with gr.Tab("One step and many"):
            _one_and_many(gr, drawer)
        with gr.Tab("Between two"):
            _between(gr, drawer)
        with gr.Tab("From noise to image"):
            _trajectory(gr, drawer)
    blocks.queue(max_size=QUEUE, default_concurrency_limit=1)
    return blocks


def launched(blocks: Any, host: str, port: int, share: bool) -> Any:
    """Serves the page in the background; returns (app, local address, public address). Raises UserError."""
    gr = quiet()
    try:
        return blocks.launch(
            server_name=host,
            server_port=port,
            share=share,
            theme=theme(gr),
            css=".dark { --color-accent: var(--primary-400); }",
            prevent_thread_lock=True,
            quiet=True,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            enable_monitoring=False,
            footer_links=[],
            max_file_size="1kb",
            allowed_paths=[],
        )
    except OSError as error:
        raise UserError(f"--port {port}: cannot be opened on {host} ({error}). Choose another one.") from error


def theme(gr: Any) -> Any:
    """Fonts of the reader's system, none is fetched; and colours that can be read: gradio's own are paler than WCAG AA
    asks for on buttons, the chosen tab and the ends of sliders."""
    blue = gr.themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"])
    button = {f"button_primary_background_fill{ground}": "*primary_700" for ground in ("", "_dark")}
    pressed = {f"button_primary_background_fill_hover{ground}": "*primary_800" for ground in ("", "_dark")}
    return blue.set(color_accent="*primary_700", body_text_color_subdued="*neutral_600", **button, **pressed)


def facts(drawer: Drawer) -> str:
    model = drawer.model
    kinds = f"{model.num_classes} classes" if model.num_classes else "no classes"
    return (
        f"{model.image_size} pixels, {kinds}, {model.sampling.sampler}. An image depends on the seed, "
        "its number and its class alone."
    )


def _choices(drawer: Drawer) -> list[tuple[str, int]]:
    names = drawer.model.class_names or tuple(map(str, range(drawer.model.num_classes)))
    return [(name, number) for number, name in enumerate(names)]


def _class(gr: Any, drawer: Drawer, label: str = "class", *, every: bool = True, value: int = -1) -> Any:
    choices = [*([(NOTHING, -1)] if every else []), *_choices(drawer)]
    return gr.Dropdown(choices, value=value, label=label, visible=drawer.model.num_classes > 0)


def _seed(gr: Any) -> Any:
    return gr.Number(0, label="seed", precision=0, minimum=0, maximum=LAST_SEED)


def _steps(gr: Any, drawer: Drawer) -> Any:
    least = 1 if drawer.jumps else 2
    steps = min(MOST_STEPS, max(least, drawer.model.sampling.steps))
    return gr.Slider(least, MOST_STEPS, value=steps, step=1, label="steps")


def _count(gr: Any, value: int) -> Any:
    return gr.Slider(1, MOST_IMAGES, value=value, step=1, label="images")


def _picture(gr: Any, label: str) -> Any:
    with gr.Column():
        gr.Markdown(label)
        buttons = ["download", "fullscreen"]
        return gr.Image(
            type="pil", format="png", label=label, show_label=False, interactive=False, buttons=buttons, alt_text=label
        )


def _answer(gr: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """What is out of bounds is told on the page."""

    @wraps(function)
    def answer(*values: Any) -> Any:
        try:
            return function(*(None if value == -1 else value for value in values))
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None

    return answer


def _images(gr: Any, drawer: Drawer) -> None:
    sampling = drawer.model.sampling
    guided = drawer.model.num_classes > 0 and not drawer.jumps
    with gr.Row():
        with gr.Column(scale=1):
            label, count, seed, steps = _class(gr, drawer), _count(gr, 12), _seed(gr), _steps(gr, drawer)
            guidance = gr.Slider(
                0, MOST_GUIDANCE, value=sampling.guidance, step=0.1, label="guidance (1: none)", visible=guided
            )
            low = gr.Number(sampling.interval[0], label="guidance acts above level", minimum=0, visible=guided)
            high = gr.Number(sampling.interval[1], label="and up to level", minimum=0, visible=guided)
            draw = gr.Button("Draw", variant="primary")
        with gr.Column(scale=2):
            picture = _picture(gr, "images")
    inputs = [label, count, seed, steps, guidance, low, high]
    draw.click(_answer(gr, drawer.images), inputs, picture, api_name="images")


def _one_and_many(gr: Any, drawer: Drawer) -> None:
    with gr.Row():
        label, count, seed, steps = _class(gr, drawer), _count(gr, 9), _seed(gr), _steps(gr, drawer)
    draw = gr.Button("Draw", variant="primary")
    with gr.Row():
        one, many = _picture(gr, "one step"), _picture(gr, "many steps")
    draw.click(_answer(gr, drawer.one_and_many), [label, count, seed, steps], [one, many], api_name="one_and_many")


def _between(gr: Any, drawer: Drawer) -> None:
    last = max(0, drawer.model.num_classes - 1)
    with gr.Row():
        first = _class(gr, drawer, "from", every=False, value=0)
        second = _class(gr, drawer, "to", every=False, value=last)
        seed, steps = _seed(gr), _steps(gr, drawer)
        pictures = gr.Slider(1, MOST_BETWEEN, value=7, step=1, label="pictures between")
    draw = gr.Button("Draw", variant="primary")
    picture = _picture(gr, "from one to the other")
    draw.click(_answer(gr, drawer.between), [first, second, seed, pictures, steps], picture, api_name="between")


def _trajectory(gr: Any, drawer: Drawer) -> None:
    with gr.Row():
        label = _class(gr, drawer, every=False, value=0)
        seed, steps = _seed(gr), _steps(gr, drawer)
    draw = gr.Button("Draw", variant="primary")
    picture = _picture(gr, "above: what the network sees; below: what it makes of it")
    draw.click(_answer(gr, drawer.trajectory), [label, seed, steps], picture, api_name="trajectory")
