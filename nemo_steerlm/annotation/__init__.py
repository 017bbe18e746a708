"""Clients of inference servers: labelling files of conversations, and asking for answers under chosen attributes. HTTP, no model code."""
