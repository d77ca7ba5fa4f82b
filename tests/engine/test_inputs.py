"""Pictures and videos of a call, resized by the process that decodes."""

from __future__ import annotations

import asyncio

from cache_dit_serving.caching.speeds import WITHOUT_CACHE
from cache_dit_serving.config.settings import InputSettings
from cache_dit_serving.engine.inputs import with_fitting_images
from cache_dit_serving.media.decode.pool import DecodingPool
from cache_dit_serving.media.inputs import InputImage, Inputs
from cache_dit_serving.media.video_input import InputVideo
from cache_dit_serving.planning.call import ImageCall
from cache_dit_serving.planning.fitting import Fitting
from cache_dit_serving.planning.planned import Planned
from tests.support.images import apple


def test_the_decoder_resizes_frames_and_pictures_as_the_call_would() -> None:
    frames = tuple(apple(64, 96).rotate(10 * index) for index in range(5))
    control = apple(64, 96)
    arguments = {"video": list(frames), "control_image": control, "last_image": frames[0].copy(), "width": 48}
    planned = Planned(
        (ImageCall(arguments, 0, WITHOUT_CACHE, 1, 1, "WanPipeline", 48 * 32 * 5),),
        inputs=Inputs(
            control=InputImage(control, "control"), video=InputVideo(frames, 12.0, more=False, digest="video")
        ),
        fittings=(
            Fitting("control_url", (64, 96), (48, 32), "crop", by_pipeline=False),
            Fitting("video_url", (64, 96), (48, 32), "pad", by_pipeline=False),
        ),
    )
    pool = DecodingPool(InputSettings(), max_waiting=1)
    try:
        ours = asyncio.run(with_fitting_images(planned, pool))
    finally:
        pool.close()
    expected = planned.fitted()
    assert ours.call.arguments["control_image"].tobytes() == expected.call.arguments["control_image"].tobytes()
    assert [each.tobytes() for each in ours.call.arguments["video"]] == [
        each.tobytes() for each in expected.call.arguments["video"]
    ]
    assert ours.call.arguments["last_image"] is arguments["last_image"]
    assert ours.inputs.video is not None
    assert list(ours.inputs.video.frames) == ours.call.arguments["video"]
    assert (ours.inputs.video.digest, ours.inputs.video.size, ours.fittings) == ("video", (48, 32), ())
