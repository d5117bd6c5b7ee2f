"""Facts and sensors of NVIDIA Jetson modules, from /proc, /sys and tegrastats; every format is from tensorrt_jetson.md, section 8."""
