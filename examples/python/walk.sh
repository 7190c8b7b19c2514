# A Python program reads a database through Peanut; docs/proxy.md explains it. It wants `peanut` and `peanut-server` on the path, and the
# Python package redis.
python3 -c "import sqlite3; db = sqlite3.connect('shop.db'); db.execute('CREATE TABLE prices (id TEXT PRIMARY KEY, price TEXT)'); db.execute('INSERT INTO prices VALUES (?, ?)', ('tea', '4.20')); db.commit()"
peanut-server --listen 127.0.0.1:10001 --nodes 127.0.0.1:10001 --group '{ name = "prices", ttl = "1m", loader = { kind = "sql", url = "sqlite:shop.db", query = "SELECT price FROM prices WHERE id = ?" } }' 2> node.log &
peanut --nodes 127.0.0.1:10001 proxy --redis 127.0.0.1:6380 2> proxy.log &
until grep -q "the Redis protocol on" proxy.log; do sleep 0.1; done
python3 -c "import redis; cache = redis.Redis(port=6380, decode_responses=True); print(cache.get('prices:tea'), cache.ttl('prices:tea') > 0, cache.get('prices:coffee'))"
