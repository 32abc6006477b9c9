# aeimg on the CPU, for x86-64.
#
#     docker build --tag aeimg .
#     docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/data" aeimg denoise in/ out/

FROM python:3.12-slim AS build
WORKDIR /source
# torch and torchvision come from one index, which has them without CUDA: a tenth of the size.
RUN python -m venv /opt/aeimg && /opt/aeimg/bin/pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu \
    "torch>=2.6" "torchvision>=0.21"
COPY LICENSE README.md pyproject.toml ./
COPY weights weights
COPY aeimg aeimg
RUN /opt/aeimg/bin/pip install --no-cache-dir ".[heic,jxl]"

FROM python:3.12-slim
RUN useradd --create-home --uid 1000 aeimg
COPY --from=build /opt/aeimg /opt/aeimg
ENV PATH="/opt/aeimg/bin:$PATH" PYTHONUNBUFFERED=1
USER 1000
WORKDIR /data
ENTRYPOINT ["aeimg"]
CMD ["--help"]
