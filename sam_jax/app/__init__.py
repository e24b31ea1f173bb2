"""The annotation page: an image is embedded once, every click decoded; what is saved is on disk at once.

    server.py        the routes
    messages.py      what requests and answers hold, and their bounds
    session.py       the model: embeddings ahead of the clicks, decodes one by one
    images.py        files of the folder, and nothing outside it
    exports.py       SA-1B and COCO JSON of what is saved
    label_studio.py  the same model for Label Studio

The page itself is in `assets/annotate`; who may ask, and the server's loop, in `web/`.
"""
