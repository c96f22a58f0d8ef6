"""Networks that are saved, shared and used: shared kinds (speech, image) and a folder for each family.

Nothing is imported here, so that `import talkinghead.models` stays fast; import from the modules.
"""
