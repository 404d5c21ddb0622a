"""What a world model knows: measurements on its frozen latents, and what the report shows of them.

Every measurement writes one JSON file, a *record*, and a picture beside it. `FORMATS` says for each kind of record,
by its field `format`, which function turns it into a `Section` of the report:

    record = load_record(path)
    title, markdown, pictures = FORMATS[record["format"]](record, path.parent)

Nothing here imports torch or matplotlib; the modules that measure and draw do, and are imported when needed.
"""

from benchmarks.knowledge.records import is_record, load_record
from benchmarks.knowledge.section import Section
from benchmarks.knowledge.sections import FORMATS

__all__ = ["FORMATS", "Section", "is_record", "load_record"]
