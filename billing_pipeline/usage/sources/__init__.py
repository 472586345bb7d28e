"""Where readings lie: folders by URI, and the files of each usage day."""
