# Prediction, training and serving on an NVIDIA GPU, from the locked requirements.
#   docker build -t instancevg_jax .
#   docker run --gpus all -p 8000:8000 instancevg_jax serve --host 0.0.0.0
FROM python:3.12-slim
WORKDIR /opt/instancevg_jax
COPY requirements/py312-cuda.txt requirements/
RUN pip install --no-cache-dir --require-hashes -r requirements/py312-cuda.txt
COPY . .
ENV PYTHONPATH=/opt/instancevg_jax
WORKDIR /work
ENTRYPOINT ["python", "-m", "instancevg_jax"]
CMD ["--help"]
