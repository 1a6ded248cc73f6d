"""The descriptor pool that cellport's messages live in."""

from google.protobuf.descriptor_pool import DescriptorPool

# Other clients of the same protocol register the same message names in protobuf's default pool, which takes a name only
# once in a process. A pool of our own lets both be imported, in either order.
POOL: DescriptorPool = DescriptorPool()
