"""Generated data: video with sound that needs no data set, for the demo and the tests.

- `talking_heads`: people whose mouths follow their own voice, true and forged in four categories.
- `general`: things that move and sound, for stage 1.
- `voice`, `faces`, `mouth`, `heads`: what they are made of; `forgery`: what is done to them.
- `writing`: one encoder for all of it, parallel and resumable.
"""

from avff.media.synthetic.general import generate_general_videos
from avff.media.synthetic.talking_heads import DEMO_PLAN, SplitPlan, generate_talking_heads
from avff.media.synthetic.writing import GenerationSummary

__all__ = ["DEMO_PLAN", "GenerationSummary", "SplitPlan", "generate_general_videos", "generate_talking_heads"]
