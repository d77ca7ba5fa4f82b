# A model's weights in a layer over the server's image, for sites without a network: docs/image.md.
# The build's context is the model's folder.
ARG IMAGE
FROM ${IMAGE}

# The model's name in answers.
ARG NAME=model
COPY --chmod=0555 . /models/${NAME}

# Empty: the configuration is recognised by the folder.
ARG CONFIG=
ENV CACHE_DIT_SERVING_CONFIG=${CONFIG} \
    CACHE_DIT_SERVING__MODEL__PATH=/models/${NAME} \
    HF_HUB_OFFLINE=1

# As the server's user. A folder that is no model, or has links to files that were not copied, fails here.
RUN cache-dit-serving inspect /models/${NAME}
