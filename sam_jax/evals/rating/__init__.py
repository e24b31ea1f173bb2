"""The paper's human study: masks of several models, rated from 1 to 10 by people who do not see whose they are."""
