import sys, torch
from benchmarks import coverage, zoo
zoo.load()
for n in sys.argv[1:]:
    r=coverage.examine(n); r.pop('fallbacks',None) if 0 else None
    print({k:v for k,v in r.items()})
