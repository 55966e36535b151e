# Everstep with its pinned packages, for Docker and Podman. everstep.def is the same for Apptainer; docs/containers.md explains both.
#
#     docker build -t everstep .
#     docker run --rm --stop-timeout 600 --shm-size 8g --user "$(id -u):$(id -g)" -v "$PWD:$PWD" -w "$PWD" everstep run
#
# On Linux, torch is a build for CUDA. For another one, such as the small one for CPUs, give the index of its wheels:
#     docker build --build-arg PIP_EXTRA_INDEX_URL=... -t everstep:cpu .
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}
ARG PIP_EXTRA_INDEX_URL
COPY LICENSE README.md Snakefile constraints.txt pyproject.toml /opt/everstep/source/
COPY config /opt/everstep/source/config
COPY profiles /opt/everstep/source/profiles
COPY report /opt/everstep/source/report
COPY rules /opt/everstep/source/rules
COPY scripts/image /opt/everstep/source/scripts/image
COPY workflow_lib /opt/everstep/source/workflow_lib
RUN /opt/everstep/source/scripts/image
# HOME and USER, since the user of `docker run --user` has neither a folder nor a name in the image
ENV PATH=/opt/everstep/bin:$PATH HOME=/tmp USER=everstep
USER everstep
WORKDIR /project
# the first process must pass on SIGTERM, and collect processes that have lost their parent
ENTRYPOINT ["tini", "--", "everstep"]
CMD ["--help"]
