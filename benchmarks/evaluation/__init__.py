"""From a run folder to a success rate: environments, protocols, the evaluation itself, films."""
