"""What the fork server loads once for all data owners and compute nodes of a local run."""

import zmpsl.loop
import zmpsl.roles.compute
import zmpsl.roles.owner

try:
    import zmpsl.engine.compute
    import zmpsl.engine.owner
except ImportError:  # without torch each role says so itself
    pass
