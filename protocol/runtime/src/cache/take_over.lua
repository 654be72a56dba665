-- Takes the place of a lease that still stands there. KEYS: place. ARGV: that lease, the new one, ms. Returns 1 where it did.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
