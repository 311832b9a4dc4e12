"""What people look at: tables and planes; it knows no volume, no run and no dataset."""
