# gpualloc with both halves of its extension, for GPUs of the architectures named by CUDA_ARCHS.
#
#   docker build --build-arg CUDA_ARCHS=90 -t gpualloc .
#   docker run --rm --gpus all --shm-size=8g --ulimit memlock=-1 gpualloc doctor
#   docker run --rm --gpus all --shm-size=8g -v "$PWD:/data" gpualloc bench --precision bf16
#
# The CUDA of the image, its major version at least, is that of the torch installed: docs/install.md.
ARG CUDA=13.0.1
FROM nvidia/cuda:${CUDA}-devel-ubuntu24.04 AS build
ARG TORCH=2.11.0
ARG CUDA_ARCHS=80,90
RUN apt-get update && apt-get install --yes --no-install-recommends g++ python3-dev python3-venv && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/gpualloc
ENV PATH=/opt/gpualloc/bin:$PATH PIP_NO_CACHE_DIR=1
RUN pip install torch==${TORCH} && pip install "setuptools>=77" cmake ninja
COPY . /src
RUN GPUALLOC_CUDA_ARCHS=${CUDA_ARCHS} pip install --no-build-isolation "/src[data,plots]"

FROM nvidia/cuda:${CUDA}-base-ubuntu24.04
# g++ is for torch.compile.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ python3-dev && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/gpualloc /opt/gpualloc
ENV PATH=/opt/gpualloc/bin:$PATH GPUALLOC_STORE=/data/results.sqlite
WORKDIR /data
ENTRYPOINT ["gpualloc"]
CMD ["doctor"]
