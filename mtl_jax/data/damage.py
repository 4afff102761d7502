"""What reading a damaged file raises, in NumPy, zipfile, tarfile, the decompressors and json, as one list.

None of them says that a file is damaged by an exception of its own: a false offset in an archive is an OSError, a
header that ends too soon a TokenError, a shape that cannot be an OverflowError or a MemoryError, another kind of object
where a mapping was expected a TypeError. Where it is caught, let DataError, which is a ValueError, pass first.
"""

import lzma
import tarfile
import tokenize
import zipfile
import zlib

DAMAGE = (
    OSError, EOFError, ValueError, OverflowError, KeyError, TypeError, AttributeError, SyntaxError, MemoryError,
    RuntimeError,  # zipfile's of encrypted members; NotImplementedError and RecursionError are of its kind
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, tokenize.TokenError,
)  # fmt: skip
