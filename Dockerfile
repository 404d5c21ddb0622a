# The demo and the tests without a screen:
#
#   docker build -t lewm-gym .
#   docker run --rm lewm-gym                      # the tests
#   docker run --rm -v "$PWD/runs:/lewm-gym/runs" lewm-gym make demo
#
# With CUDA: docker build -t lewm-gym --build-arg TORCH_BACKEND=cu128 . and docker run --gpus all ...
ARG PYTHON=3.12
FROM python:${PYTHON}-slim
ARG TORCH_BACKEND=cpu

RUN apt-get update \
    && apt-get install -y --no-install-recommends make libegl1 libegl-mesa0 libgl1 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /lewm-gym
COPY . .
# The image's own Python is the environment; make finds it ready.
ENV VENV=/usr/local SDL_VIDEODRIVER=dummy
RUN UV_TORCH_BACKEND=${TORCH_BACKEND} UV_NO_CACHE=1 PIP_NO_CACHE_DIR=1 make setup

CMD ["make", "test"]
