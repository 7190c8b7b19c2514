CREATE TABLE scores AS SELECT 'key-' || n AS id, 'score ' || n AS score FROM generate_series(0, 99999) n;
ALTER TABLE scores ADD PRIMARY KEY (id);
