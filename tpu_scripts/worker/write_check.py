"""Can a file be made in a folder, as mmx makes its files? write_check.py PATH"""

import os
import socket
import sys

from etils import epath

folder = epath.Path(sys.argv[1])
file = folder / f".mmx-doctor-{socket.gethostname()}-{os.getpid()}"
folder.mkdir(parents=True, exist_ok=True)
file.write_text("written by tpu_scripts/doctor.sh\n")
file.unlink()
print(f"written and removed {file}")
