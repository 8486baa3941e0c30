"""PostgreSQL: connections, migrations, one module per noun."""
