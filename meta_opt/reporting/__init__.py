"""Tables, figures and pages, from what runs left in their directories."""
