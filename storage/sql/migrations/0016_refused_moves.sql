-- What a lane said to a move that it would not make. It waits on, and is tried again; others do not wait for it.

ALTER TABLE wallet_moves ADD COLUMN refused text;
ALTER TABLE wallet_moves ADD COLUMN refused_at timestamptz;
GRANT UPDATE (refused, refused_at) ON wallet_moves TO cloudbilling_app;
