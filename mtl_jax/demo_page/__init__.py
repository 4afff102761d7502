"""A local page on which a person sorts photographs by a few examples of each class.

Start with album.py: classes, photographs and answers, all in memory. server.py says which requests are answered and
which are refused. page.html, style.css and app.js are what the browser gets.
"""
