"""The annotation page: each image is embedded once and each click decoded; saved masks are on disk at once.

    server.py              the routes
    messages.py            the contents of requests and responses, and their limits
    session.py             the model: embeds images ahead of the clicks, and decodes prompts one by one
    images.py              reads images of the folder, and nothing outside it
    exports.py             downloads of saved masks, in any output format
    label_studio.py        the same model as an ML backend of Label Studio
    label_studio_files.py  images that are fetched from Label Studio
    brush_rle.py           Label Studio's run lengths

The command is `commands/annotate.py`, the page itself is in `assets/annotate`, access control and serving in `web/`.
"""
