# One file for every image: ARG ACCELERATOR=cpu|gpu, targets `slim` (ONNX only) and `full` (default; adds PyTorch).
# Which index pip asks is the builder's own setting: pass --build-arg PIP_INDEX_URL=… (or PIP_EXTRA_INDEX_URL,
# PIP_FIND_LINKS) or mount a pip.conf.
ARG BASE_IMAGE=debian:bookworm-slim
ARG ACCELERATOR=cpu

FROM ${BASE_IMAGE} AS python
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*

# --- what pip installs, in stages that do not end up in an image ------------------------------------------------------
FROM python AS locks-cpu
COPY requirements/serve.txt /requirements/serve.txt

FROM python AS locks-gpu
COPY requirements/serve-gpu.txt /requirements/serve.txt

FROM locks-${ACCELERATOR} AS venv
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
COPY requirements/build.txt /requirements/
# Every package is in the lock (--no-deps); the two that come as source are pure Python and built with the pinned
# setuptools, so no compiler is needed. Test suites and headers inside the packages are dead weight.
RUN python3 -m venv /opt/venv \
    && pip="/opt/venv/bin/pip --disable-pip-version-check --no-cache-dir -q install --no-deps --require-hashes" \
    && $pip -r /requirements/build.txt \
    && $pip --no-build-isolation -r /requirements/serve.txt \
    && find /opt/venv -type d \( -path '*/numpy/*/tests' -o -path '*/scipy/*/tests' -o -path '*/pyarrow/tests' \
        -o -path '*/pyarrow/include' \) -prune -exec rm -rf {} +

FROM venv AS venv-full
COPY requirements/full.txt requirements/torch.txt /requirements/
RUN /opt/venv/bin/pip --disable-pip-version-check --no-cache-dir -q install --no-deps --require-hashes \
        -r /requirements/full.txt \
    && /opt/venv/bin/pip --disable-pip-version-check --no-cache-dir -q install -r /requirements/torch.txt \
    && rm -rf /opt/venv/lib/python3.11/site-packages/torch/test /opt/venv/lib/python3.11/site-packages/torch/include

# --- what is in them: the list fails where a licence is unknown or not allowed ----------------------------------------
FROM venv AS sbom-tool
COPY requirements/sbom.txt /requirements/
RUN python3 -m venv /opt/sbom \
    && /opt/sbom/bin/pip --disable-pip-version-check --no-cache-dir -q install --no-deps --require-hashes \
        -r /requirements/sbom.txt

FROM venv AS sbom-slim
COPY --from=sbom-tool /opt/sbom /opt/sbom
COPY --from=python /var/lib/dpkg/status /opt/sbom/status
COPY pyproject.toml scripts/sbom.py /opt/sbom/
RUN cd /opt/sbom && bin/python sbom.py /opt/venv status pyproject.toml /sbom

FROM venv-full AS sbom-full
COPY --from=sbom-tool /opt/sbom /opt/sbom
COPY --from=python /var/lib/dpkg/status /opt/sbom/status
COPY pyproject.toml scripts/sbom.py /opt/sbom/
RUN cd /opt/sbom && bin/python sbom.py /opt/venv status pyproject.toml /sbom

# --- the images -------------------------------------------------------------------------------------------------------
FROM python AS runtime-cpu
# Nothing in the image needs another user's rights.
RUN find / -xdev -type f -perm /6000 -exec chmod a-s {} +
# HOME: any user may run the image, and only /tmp is sure to be writable. The last two: nothing calls home, what a user
# adds to the image included.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    LANG=C.UTF-8 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    HF_HUB_OFFLINE=1
LABEL com.amazonaws.sagemaker.capabilities.accept-bind-to-port=true \
    com.amazonaws.sagemaker.capabilities.multi-models=true
EXPOSE 8080
WORKDIR /opt/trimodal
ENTRYPOINT ["/opt/trimodal/docker/serve"]
CMD ["serve"]

FROM runtime-cpu AS runtime-gpu
# The driver is mounted by the host's NVIDIA runtime, which reads the first two; CUDA and cuDNN come from their packages.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    LD_LIBRARY_PATH=/opt/venv/lib/python3.11/site-packages/nvidia/cu13/lib:/opt/venv/lib/python3.11/site-packages/nvidia/cudnn/lib

# The code comes last, so that a change of it rebuilds in seconds. The bytecode is made here because nobody can write it
# later: the root file system may be read-only. The user is any but root (a number, so that Kubernetes can tell);
# an image made FROM this one that installs more says USER 0 first.
FROM runtime-${ACCELERATOR} AS slim
COPY --from=venv /opt/venv /opt/venv
COPY --from=sbom-slim /sbom ./
COPY LICENSE pyproject.toml ./
COPY docker docker
COPY code code
RUN pip --disable-pip-version-check --no-cache-dir -q install --no-deps --no-build-isolation -e . \
    && python -m compileall -q code
USER 1000:1000

FROM runtime-${ACCELERATOR} AS full
COPY --from=venv-full /opt/venv /opt/venv
COPY --from=sbom-full /sbom ./
COPY LICENSE pyproject.toml ./
COPY docker docker
COPY code code
RUN pip --disable-pip-version-check --no-cache-dir -q install --no-deps --no-build-isolation -e . \
    && python -m compileall -q code
USER 1000:1000
