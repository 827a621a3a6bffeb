# EPG in a container, for a CPU or for CUDA. Not built by the project's CI: it has no access to an image registry.
#
#   docker build -t epg .                                                             # CPU
#   docker build -t epg --build-arg TORCH=https://download.pytorch.org/whl/cu130 .    # CUDA; run with --gpus all
#   docker run --rm -v "$PWD:/work" epg quickstart --out runs/digits
ARG BASE=python:3.12-slim
FROM ${BASE}
ARG TORCH=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir torch --index-url ${TORCH}
COPY . /opt/epg
RUN pip install --no-cache-dir "/opt/epg[diffusers]" && useradd --create-home epg
USER epg
WORKDIR /work
ENTRYPOINT ["epg"]
