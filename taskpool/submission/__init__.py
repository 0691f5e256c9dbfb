"""From what is submitted to what `add.lua` stores."""
