hook_name() { echo none; }
