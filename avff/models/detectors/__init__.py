"""Networks of other detectors, in their own layout, so that published weights give the scores that they gave there."""
