"""Generated texts with known secrets in them, and texts that only look so: the measure of the scrubber.

Owns the generators; knows nothing of the scrubber's rules. Everything is made from a seed at run time: no secret, real or
invented, stands in the repository. The formats were written down from the providers' documentation and from the public
lists of secret-scanning partners, apart from the scrubber's own table.
"""
