"""The whole way from questions to a taught student: recipes, their stages, their folder."""
