"""Results for readers: tables, sentences, figures, one HTML page."""
